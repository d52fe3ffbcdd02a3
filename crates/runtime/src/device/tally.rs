//! What a session has run on its device, what on the host, and what it moved between the two.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Where the nodes of a session with a device have run so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Nodes run on the device, by operator.
    pub device: BTreeMap<String, u64>,
    /// Nodes run on the host, by operator.
    pub host: BTreeMap<String, u64>,
    /// Bytes of values moved to the device, weights included.
    pub uploaded: u64,
    /// Bytes of intermediate values that host kernels took back from the device.
    pub downloaded: u64,
}

impl Placement {
    /// Share of the nodes that ran on the device, from 0 to 1; 1 when nothing has run.
    pub fn share(&self) -> f64 {
        let (device, host): (u64, u64) = (self.device.values().sum(), self.host.values().sum());
        if device + host == 0 { 1.0 } else { device as f64 / (device + host) as f64 }
    }

    /// Adds what another session has run.
    pub fn add(&mut self, other: &Placement) {
        for (ours, theirs) in [(&mut self.device, &other.device), (&mut self.host, &other.host)] {
            for (operator, count) in theirs {
                *ours.entry(operator.clone()).or_default() += count;
            }
        }
        self.uploaded += other.uploaded;
        self.downloaded += other.downloaded;
    }
}

impl std::fmt::Display for Placement {
    /// `93% of the nodes ran on the device; on the host: Shape 4, Gather 2 (2 more); 1.2 MB came back`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// Operators that are named; the rest is counted.
        const NAMED: usize = 8;
        let (device, host): (u64, u64) = (self.device.values().sum(), self.host.values().sum());
        write!(f, "{device} of {} nodes ran on the device", device + host)?;
        if host > 0 {
            let mut operators: Vec<(&String, &u64)> = self.host.iter().collect();
            operators.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
            let named: Vec<String> =
                operators.iter().take(NAMED).map(|(name, count)| format!("{name} {count}")).collect();
            write!(f, ", {host} on the host ({}", named.join(", "))?;
            if operators.len() > NAMED {
                write!(f, ", {} more operators", operators.len() - NAMED)?;
            }
            write!(f, ")")?;
        }
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "; {:.1} MB went there, {:.1} MB came back for host kernels",
            megabytes(self.uploaded),
            megabytes(self.downloaded)
        )
    }
}

/// The counts of a session that is running.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Placement>);

impl Tally {
    fn with(&self, change: impl FnOnce(&mut Placement)) {
        // Counts stay whole when a kernel panics between them.
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// A node ran on the device.
    pub(crate) fn on_device(&self, operator: &str) {
        self.with(|counts| *counts.device.entry(operator.to_owned()).or_default() += 1);
    }

    /// A node ran on the host.
    pub(crate) fn on_host(&self, operator: &str) {
        self.with(|counts| *counts.host.entry(operator.to_owned()).or_default() += 1);
    }

    /// Bytes went to the device.
    pub(crate) fn uploaded(&self, bytes: usize) {
        self.with(|counts| counts.uploaded += bytes as u64);
    }

    /// Bytes came back for a host kernel.
    pub(crate) fn downloaded(&self, bytes: usize) {
        self.with(|counts| counts.downloaded += bytes as u64);
    }

    /// The counts so far.
    pub(crate) fn placement(&self) -> Placement {
        let mut placement = Placement::default();
        self.with(|counts| placement = counts.clone());
        placement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_said() {
        let tally = Tally::default();
        assert_eq!(tally.placement().share(), 1.0);
        for _ in 0..3 {
            tally.on_device("Conv");
        }
        tally.on_host("Shape");
        tally.uploaded(2_000_000);
        tally.downloaded(500_000);
        let placement = tally.placement();
        assert_eq!(placement.share(), 0.75);
        assert_eq!(
            placement.to_string(),
            "3 of 4 nodes ran on the device, 1 on the host (Shape 1); 2.0 MB went there, 0.5 MB came back \
             for host kernels"
        );
        let mut sum = placement.clone();
        sum.add(&placement);
        assert_eq!(sum.host["Shape"], 2);
    }
}
