"""The wire: connections to the mail server, and messages over them."""
