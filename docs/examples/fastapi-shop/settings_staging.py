from settings import *
from settings import EMAIL

EMAIL = {
    **EMAIL,
    "redirect_to": ["team@shop.example"],
    "redirect_except": ["tester@shop.example"],
    "inbox": "always",
    "inbox_hosts": ["staging.shop.example"],
}
