import pytest

pytestmark = pytest.mark.infserver("llama", server_args={"embedding": True, "pooling": "mean"})


@pytest.mark.parametrize("count", [1, 3])
def test_embeddings(inference_client, count):
    answer = inference_client.embeddings.create(model="m", input=["this tiny model"] * count, encoding_format="float")
    vectors = [one.embedding for one in answer.data]
    assert len(vectors) == count
    assert len(vectors[0]) == 64
    assert vectors[0] == pytest.approx(vectors[-1], abs=1e-5)
