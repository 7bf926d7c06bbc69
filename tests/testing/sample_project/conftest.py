import os

import pytest

os.environ["OPENVIPER_SETTINGS_MODULE"] = "shop_settings"


@pytest.fixture
def anyio_backend():
    return "asyncio"
