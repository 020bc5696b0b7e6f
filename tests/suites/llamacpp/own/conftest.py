import pytest
import requests


@pytest.fixture
def requests_to():
    def to(server):
        def post(path, body):
            answer = requests.post(server.url_for(path), json=body, timeout=60)
            assert answer.ok, answer.text
            return answer.json()

        return post

    return to
