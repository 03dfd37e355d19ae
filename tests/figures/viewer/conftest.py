from reporting.browser import browser

__all__ = ["browser"]
