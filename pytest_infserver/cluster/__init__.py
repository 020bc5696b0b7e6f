"""Servers on the machines of a Ray cluster: which node runs one, and how it is used from here.

``agent`` is a process of its own beside pytest, and the only one that is connected to Ray; what is in ``node`` runs in
a Ray actor on the server's node. The rest runs in pytest: ``connection`` leads to the agent, ``placement`` finds room,
``runtime`` starts, hears and stops servers. `cluster.Cluster` is what pytest gets of all that.
"""
