import pytest
import requests


@pytest.mark.infserver_needs("proxy", "tiny-0", "tiny-1")
def test_both_servers_answer_in_turn(inference_servers):
    url = inference_servers["proxy"].url_for("/v1/models")
    answers = [requests.get(url, timeout=10) for _ in range(4)]
    urls = {server.server_url for name, server in inference_servers.items() if name != "proxy"}
    assert {answer.headers["X-Server"] for answer in answers} == urls
    assert {answer.json()["data"][0]["id"] for answer in answers} == {"tiny-0", "tiny-1"}
