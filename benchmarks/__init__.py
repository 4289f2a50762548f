"""Speed, measured: `script/bench`. One file a question; `harness/` measures, `shop/` is the Django project measured."""
