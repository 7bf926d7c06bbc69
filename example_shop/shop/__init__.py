"""A small shop for letter writers that takes orders and sends mail with ``openviper.core.email``."""
