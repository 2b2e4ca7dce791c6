"""`svg::attention` in Gluon for sm_90."""
