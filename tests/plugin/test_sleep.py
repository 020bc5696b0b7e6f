"""Tests that put their server to sleep."""

from __future__ import annotations

import pytest


@pytest.fixture
def sleeper(inline_project):
    """A project with a backend that sleeps."""
    inline_project.files(
        sleeper="""
            from pytest_infserver import CommandServer
            from pytest_infserver.launcher.engine.sleep_requests import SleepRequests

            class Sleeper(CommandServer):
                sleep_requests = SleepRequests("/sleep?level={level}", "/wake_up", "no advice")

                def get_backend_name(self):
                    return "sleeper"
        """
    )
    inline_project.servers(small=[])
    file = inline_project.path / "servers.yaml"
    file.write_text(file.read_text().replace("backend: command", "backend: 'sleeper:Sleeper'"))
    return inline_project


def test_a_test_that_leaves_its_server_asleep_does_not_disturb_the_next(sleeper):
    sleeper.files(
        test_it="""
            import pytest

            def test_shared(inference_server):
                with pytest.raises(Exception, match="shared"):
                    inference_server.sleep()

            @pytest.mark.infserver(exclusive=True)
            def test_sleeps(inference_server):
                inference_server.sleep()
                assert not inference_server.check_health()
                assert 0

            def test_next(inference_server):
                assert inference_server.awake
                assert inference_server.check_health()
        """
    )
    result = sleeper.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["ready, asleep, up *"])
