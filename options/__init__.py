"""Options of the bridge. Take the ones you need; gateway.py needs http.py."""
