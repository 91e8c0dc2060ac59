//! The death of the leader: once half of the orders are decided, it gets SIGKILL; then it is started again.

use std::time::Instant;

use indicatif::ProgressBar;
use tokio::sync::{SetOnce, watch};

use synod_examples::cluster::{Cluster, ClusterError};

/// What the workload and the killer know of each other.
#[derive(Debug)]
pub(crate) struct Turn {
    order_count: usize,
    decided: watch::Sender<usize>,
    killed: SetOnce<Instant>,
    is_kill: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failover {
    pub(crate) replica: u8,
    pub(crate) killed_at: Instant,
    pub(crate) after_orders: usize,
    pub(crate) new_leader: u8,
}

impl Turn {
    /// For so many orders, with or without a kill.
    pub(crate) fn new(order_count: usize, is_kill: bool) -> Self {
        Self {
            order_count,
            decided: watch::Sender::new(0),
            killed: SetOnce::new(),
            is_kill,
        }
    }

    /// Waits for the turn of the order at `index`. The last quarter waits for the kill, so that some orders always meet
    /// the coordinator without its leader, however few there are; with many orders nobody ever waits here.
    pub(crate) async fn of(&self, index: usize) {
        if self.is_kill && index >= self.order_count - self.order_count / 4 {
            self.killed.wait().await;
        }
    }

    /// One more order is placed or refused.
    pub(crate) fn decided(&self) {
        self.decided.send_modify(|decided| *decided += 1);
    }

    /// Kills the leader at half time, waits for the next one, and starts the killed replica again.
    pub(crate) async fn kill_leader(
        &self,
        cluster: &mut Cluster,
        bar: &ProgressBar,
    ) -> Result<Option<Failover>, ClusterError> {
        if !self.is_kill {
            return Ok(None);
        }
        let half = self.order_count.div_ceil(2);
        let mut decided = self.decided.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = decided.wait_for(|&decided| decided >= half).await;
        let (replica, killed_at) = cluster.kill_leader().await?;
        let after_orders = *decided.borrow();
        // Nobody else sets it.
        let _ = self.killed.set(killed_at);
        let say = |text: String| bar.suspend(|| eprintln!("{text}"));
        say(format!(
            "SIGKILL to replica {replica}, the leader, after {after_orders} orders"
        ));
        let (new_leader, _) = cluster.await_leader(Some(replica)).await?;
        say(format!("replica {new_leader} leads"));
        cluster.restart(replica).await?;
        say(format!("replica {replica} is started again"));
        Ok(Some(Failover {
            replica,
            killed_at,
            after_orders,
            new_leader,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::Turn;
    use std::time::{Duration, Instant};

    /// Few orders: at least one is left for the time after the kill, and half of them never wait for it.
    #[tokio::test]
    async fn the_last_quarter_waits_for_the_kill() {
        for (order_count, free_count) in [(1, 1), (4, 3), (7, 6), (8, 6), (400, 300)] {
            let turn = Turn::new(order_count, true);
            let waits = async |index| {
                tokio::time::timeout(Duration::ZERO, turn.of(index))
                    .await
                    .is_err()
            };
            for index in 0..order_count {
                assert_eq!(
                    waits(index).await,
                    index >= free_count,
                    "order {index} of {order_count}"
                );
            }
            turn.killed.set(Instant::now()).expect("not killed yet");
            assert!(!waits(order_count - 1).await);
        }
        let turn = Turn::new(4, false);
        tokio::time::timeout(Duration::from_secs(5), turn.of(3))
            .await
            .expect("without a kill nobody waits");
    }
}
