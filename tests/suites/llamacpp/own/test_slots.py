import pytest


@pytest.fixture
def server(inference_server_factory, tmp_path):
    return inference_server_factory("llama", server_args={"parallel": 1, "slot-save-path": str(tmp_path)})


def test_a_slot_is_saved_and_restored(server, tmp_path, requests_to):
    post = requests_to(server)
    post("/completion", {"prompt": "this tiny model knows", "n_predict": 4, "id_slot": 0, "cache_prompt": True})
    saved = post("/slots/0?action=save", {"filename": "slot.bin"})
    assert saved["n_saved"] > 4
    assert (tmp_path / "slot.bin").exists()
    restored = post("/slots/0?action=restore", {"filename": "slot.bin"})
    assert restored["n_restored"] == saved["n_saved"]
