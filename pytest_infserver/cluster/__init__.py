"""Servers on the machines of a Ray cluster: which node runs one, and how it is used from here.

``agent`` is a process of its own beside pytest, and the only one that is connected to Ray; ``node_server`` runs as a
Ray actor on the server's node. The rest runs in pytest.
"""
