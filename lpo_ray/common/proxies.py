"""Proxies of the environment (http_proxy, https_proxy, all_proxy, no_proxy): which one a service is asked through.

A service on this machine or in a private network is asked directly, whatever http_proxy says: a proxy outside cannot
reach it, and clusters that set http_proxy seldom name every host in no_proxy.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.request
from urllib.parse import urlsplit


def proxy_of(url: str) -> str | None:
    """Return the proxy through which ``url`` is asked; None: directly. May look the host up, which takes a moment."""
    parts = urlsplit(url)
    host, found = parts.hostname or "", urllib.request.getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or urllib.request.proxy_bypass(host) or is_private(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_private(host: str) -> bool:
    """Tell whether ``host`` is this machine, one of the cluster's own names (without a dot), or has private addresses
    only.
    """
    if host == "localhost" or host.endswith(".localhost") or ("." not in host and ":" not in host):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    try:
        found = {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
    except OSError:  # only the proxy knows it
        return False
    return bool(found) and not any(ipaddress.ip_address(address.partition("%")[0]).is_global for address in found)


def without_login(proxy: str) -> str:
    """Write a proxy's address for a message, without the user and password it may hold."""
    parts = urlsplit(proxy)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def through(proxy: str | None, url: str) -> str:
    """Say for a message about a failure that a proxy was asked, and how to do without it. Empty without a proxy."""
    if proxy is None:
        return ""
    return (
        f" (asked through the proxy {without_login(proxy)}, from http_proxy in the environment; to ask it directly, "
        f"put {urlsplit(url).hostname} into no_proxy)"
    )


def ask_directly(url: str) -> None:
    """Have libraries that read the environment themselves ask ``url`` as ``proxy_of`` says: it goes into no_proxy."""
    host, known = urlsplit(url).hostname or "", os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if proxy_of(url) is None and host not in known.split(","):
        os.environ["no_proxy"] = ",".join(filter(None, (known, host)))
