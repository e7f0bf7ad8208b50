"""Point operations of PointNet++ (Qi et al. 2017): sampling, gathering, interpolation."""
