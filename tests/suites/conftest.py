"""The suites are run as projects of their own, by test_suites.py."""

collect_ignore_glob = ["*/dropin/*", "*/own/*"]
