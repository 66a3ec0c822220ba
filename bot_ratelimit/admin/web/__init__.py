"""HTTP for operators: a JSON API and a page over `Control`; needs the extra `admin`.

A request passes `error_middleware` (whatever goes wrong becomes a `problems.Problem`) and `access` (who
may; with `sessions`, `mini_app`, `attempts` and `peer`). Then `api` (with `bodies`), `stream` or
`pages` handles it. `console` is what they share, and `app` puts them together.
"""
