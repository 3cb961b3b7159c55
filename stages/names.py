"""Names of files: of parts; and of those that come from outside, and are joined to folders of ours."""

from stages.errors import ContractError


def inside(name: str, where: str) -> str:
    """`name`, if joined to a folder it stays below it. `where`: what has the name, for people.

    Raises ContractError where it would lead out of the folder, and be read, written or removed there.
    """
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ContractError(
            f"{where} has a file {name!r:.200}, which leads out of its folder. No run of ours writes such names: find "
            "out who did, and delete it"
        )
    return name


def number_of(part: str) -> int:
    """By its name: to look for it in a list takes longer, the more parts there are."""
    return int(part.removeprefix("part-").removesuffix(".parquet"))


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"
