"""Debug mode: what a server's processes held, and what of it is left when they are gone.

One file per kind of resource. All but `gpu` and `report` run inside the supervisor, so that they also work when the
owner has been killed: they import only the standard library.
"""
