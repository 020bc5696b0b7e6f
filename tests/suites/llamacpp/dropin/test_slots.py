import pytest


@pytest.fixture
def server(tiny, tmp_path):
    server = tiny()
    server.n_slots = 1
    server.slot_save_path = str(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_slot_is_saved_and_restored(server, tmp_path):
    body = {"prompt": "this tiny model knows", "n_predict": 4, "id_slot": 0, "cache_prompt": True}
    assert server.make_request("POST", "/completion", body).status_code == 200
    saved = server.make_request("POST", "/slots/0?action=save", {"filename": "slot.bin"}).body
    assert saved["n_saved"] > 4
    assert (tmp_path / "slot.bin").exists()
    restored = server.make_request("POST", "/slots/0?action=restore", {"filename": "slot.bin"}).body
    assert restored["n_restored"] == saved["n_saved"]
