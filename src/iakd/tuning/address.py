"""The address of a shared study."""

from iakd.errors import UserError


def check_address(address: str | None) -> None:
    """Refuse, as UserError, what several processes cannot share."""
    if address is None or address.startswith("postgresql+"):
        return
    kind = address.partition(":")[0]
    why = "SQLite loses or stalls parallel workers" if kind.startswith("sqlite") else f"{kind!r} is not supported"
    raise UserError(f"tune.storage: {why}; use postgresql+psycopg://USER@HOST/DATABASE, or null for a journal file")
