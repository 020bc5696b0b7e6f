"""Speed and a score as tests. Save baselines with: pytest conftest_examples/load --infserver-load-save"""


def test_speed_of_many_users(inference_load):
    result = inference_load(concurrency=4, requests=100, prompt_tokens=128, output_tokens=64, warmup=8)
    assert result.failed == 0
    assert result.output_tokens_per_second > 10
    # Against the baseline of this server, this workload and this machine; without one it is a warning.
    result.assert_not_slower(by=0.5)


def test_requests_that_come_as_people_do(inference_load):
    limits = {"ttft": 2.0, "e2e": 10.0}
    result = inference_load(rate=20.0, duration=2.0, api="chat", prompt_tokens=64, output_tokens=16, limits=limits)
    assert result.failed == 0
    assert result.goodput > 1
    assert result.ttft.p99 < 5


def test_a_score(inference_client, inference_server, inference_score):
    # Any figure will do, such as what lm_eval or another tool has come to; here how often an answer is the same twice.
    def ask(prompt):
        answer = inference_client.completions.create(
            model=inference_server.api_model, prompt=prompt, max_tokens=8, temperature=0
        )
        return answer.choices[0].text

    prompts = ["The sky is", "One and one make", "Once upon a time"]
    inference_score("repeatable", sum(ask(one) == ask(one) for one in prompts) / len(prompts), min=0.6)
