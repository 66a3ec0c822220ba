"""HTTP for operators: a JSON API and a page over `Control`; needs the extra `admin`.

A request first passes `error_middleware`, which answers every failure with a `problems.Problem`,
and `access`, which checks who sends it (with `sessions`, `mini_app`, `login_limits` and
`trusted_proxies`). Then `api` (with `validation`), `stream` or `pages` (with `actions`) handles it.
The handlers share the `console`. `app` puts everything together.
"""
