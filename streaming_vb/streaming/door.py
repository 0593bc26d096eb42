"""How a worker reaches whichever server is there: through a pair of sockets that all of them inherit.

A connection is a new pair of sockets, one end of which goes through the door. There is no port and no path that a
stranger could open, and nothing left to clean up. While no server runs, connections wait in the door for the next one.
"""

import socket


class Door:
    """Made by the driver before anything is forked."""

    def __init__(self) -> None:
        self._outside, self._inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def connect(self) -> socket.socket:
        """A worker's end of a new connection. What is written waits there for the server.

        >>> door = Door()
        >>> outside, inside = door.connect(), door.accept()
        >>> outside.send(b"push")
        4
        >>> inside.recv(10)
        b'push'
        >>> outside.close(), inside.close(), door.close()
        (None, None, None)
        """
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._outside, [b"."], [theirs.fileno()])
        return ours

    def accept(self) -> socket.socket:
        """The server's end of the next connection; waits for one."""
        _, descriptors, _, _ = socket.recv_fds(self._inside, 1, 1, socket.MSG_CMSG_CLOEXEC)
        return socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        """Close the ends of this process."""
        self._outside.close()
        self._inside.close()
