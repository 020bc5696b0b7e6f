import os
import socket
import unittest

import openai
import requests

from pytest_infserver.compat_sglang import kill_process_tree, popen_launch_server

MODEL = f"{os.environ['ENGINE_MODELS']}/tiny"
ENV = {"HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_CPU_OMP_THREADS_BIND": "all"}
ARGS = (
    "--context-length 512 --device cpu --attention-backend torch_native --sampling-backend pytorch"
    " --grammar-backend none --disable-overlap-schedule --skip-server-warmup --mem-fraction-static 0.2"
    " --max-total-tokens 4096 --dtype float32 --served-model-name tiny"
)


def free_url():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


class TestServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.url = free_url()
        env = {**os.environ, **ENV, "PATH": f"{os.environ['ENGINE_SGLANG']}/bin:{os.environ['PATH']}"}
        cls.process = popen_launch_server(MODEL, cls.url, timeout=900, other_args=ARGS.split(), env=env)

    @classmethod
    def tearDownClass(cls):
        kill_process_tree(cls.process.pid)

    def test_completion(self):
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(model="tiny", prompt="this", max_tokens=4, temperature=0)
        assert answer.usage.completion_tokens == 4

    def test_the_cache_is_flushed(self):
        assert requests.post(f"{self.url}/flush_cache", timeout=60).status_code == 200

    def test_model_info(self):
        info = requests.get(f"{self.url}/get_model_info", timeout=60).json()
        assert info["model_path"] == MODEL
