"""A small shop for letter writers: it takes orders, and sends its mail with ``openviper.core.email``."""
