"""What all servers here share: addresses, and who may ask."""

from detector.web.access import TOKEN_VARIABLE, Guard, is_loopback, listen, parse_address, token_for, with_token

__all__ = ["TOKEN_VARIABLE", "Guard", "is_loopback", "listen", "parse_address", "token_for", "with_token"]
