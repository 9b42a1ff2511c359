"""What the tests of the shipped models share."""

import socket

import pytest


@pytest.fixture(scope="module")
def no_network():
    """Every connection is refused."""

    def refuse(*args, **kwargs):
        raise OSError("the test allows no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield
