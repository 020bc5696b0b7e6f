from my_backend import MyBackendServer


def pytest_infserver_backends(config):
    return [MyBackendServer]
