import openai
import pytest


@pytest.fixture(scope="module")
def server(tiny):
    server = tiny()
    server.server_embeddings = True
    server.pooling = "mean"
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.make_url("/v1"), api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("count", [1, 3])
def test_embeddings(client, count):
    answer = client.embeddings.create(model="tiny", input=["this tiny model"] * count, encoding_format="float")
    vectors = [one.embedding for one in answer.data]
    assert len(vectors) == count
    assert len(vectors[0]) == 64
    assert vectors[0] == pytest.approx(vectors[-1], abs=1e-5)
