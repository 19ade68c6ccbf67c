"""The rooms of the bridge. durable.py and activities.py need all of them."""
