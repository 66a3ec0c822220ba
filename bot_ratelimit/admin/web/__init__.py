"""HTTP for operators: a JSON API and a page over `Control`; needs the extra `admin`.

A request first passes `problems`, which answers every failure, and `access`, which checks who sends
it (with `sessions`, `logins` and `trusted_proxies`). Then `api` (with `requests`) or `pages`
(with `forms`) handles it. The handlers share the `console`. `app` puts everything together.
"""
