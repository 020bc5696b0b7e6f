def test_completion(inference_client):
    answer = inference_client.completions.create(model="tiny", prompt="this", max_tokens=4, temperature=0)
    assert answer.usage.completion_tokens == 4


def test_the_cache_is_flushed(inference_server, inference_session):
    assert inference_session.post(inference_server.url_for("flush_cache")).status_code == 200


def test_model_info(inference_server, inference_session):
    info = inference_session.get(inference_server.url_for("get_model_info")).json()
    assert info["model_path"] == inference_server.model
