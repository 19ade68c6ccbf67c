"""The command line's rooms: the server, the terminal, the demo. Not for copying."""
