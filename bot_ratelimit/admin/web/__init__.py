"""HTTP for operators: a JSON API and a page over `Control`; needs the extra `admin`."""
