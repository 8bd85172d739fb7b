//! What is kept of many samples.

/// Samples in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sorted(Vec<f64>);

impl Sorted {
    pub(super) fn new(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = samples.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The sample that `share` of the others lie below, the nearest there is; NaN without samples.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let index = (self.0.len().saturating_sub(1) as f64 * share).round() as usize;
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn minimum(&self) -> f64 {
        self.quantile(0.0)
    }

    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(super) fn maximum(&self) -> f64 {
        self.quantile(1.0)
    }

    /// How far apart the quarters' ends are: half of all samples lie within. No outlier changes it.
    pub(super) fn spread(&self) -> f64 {
        self.quantile(0.75) - self.quantile(0.25)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let sorted = Sorted::new([5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!([0.0, 0.5, 0.75, 1.0].map(|share| sorted.quantile(share)), [1.0, 3.0, 4.0, 5.0]);
        assert_eq!((sorted.minimum(), sorted.median(), sorted.maximum()), (1.0, 3.0, 5.0));
    }

    #[test]
    fn an_outlier_does_not_widen_the_spread() {
        let calm = Sorted::new((0..21).map(f64::from));
        let disturbed = Sorted::new((0..20).map(f64::from).chain([1e9]));
        assert_eq!(calm.spread(), 10.0);
        assert_eq!(disturbed.spread(), calm.spread());
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert!(Sorted::default().median().is_nan());
    }
}
