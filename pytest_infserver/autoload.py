"""What pytest loads by itself: it names the plugin, which pytest then knows by one name however often it is asked for.

``-p infserver``, ``-p pytest_infserver``, ``pytest_plugins`` in a conftest and loading by itself go together.
"""

pytest_plugins = ("pytest_infserver.plugin",)
