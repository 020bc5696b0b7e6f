"""Whether a server is what the clients of the OpenAI API expect: ``pytest --pyargs pytest_infserver.conformance``.

Each test is a statement about the answers of a server, with its source. What a server offers is found by asking.
"""
