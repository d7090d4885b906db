"""The access key that NAI's clients make of an e-mail address and a password, and log in with instead of them."""

from base64 import urlsafe_b64encode
from hashlib import blake2b

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

DOMAIN = "novelai_data_access_key"


def derive_access_key(email: str, password: str) -> str:
    """The 64 characters a client sends to `/user/login`; capitals in the e-mail address count."""
    salt = blake2b((password[:6] + email + DOMAIN).encode(), digest_size=16).digest()
    # 2,000,000 bytes in whole KiB, as clients compute it
    argon = Argon2id(salt=salt, length=64, iterations=2, lanes=1, memory_cost=2_000_000 // 1024)
    return urlsafe_b64encode(argon.derive(password.encode())).decode()[:64]
