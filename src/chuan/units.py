"""How quantities are shown to people."""


def format_size(size: int) -> str:
    """Decimal gigabytes, as disks and downloads are sold; megabytes below a tenth of one."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
