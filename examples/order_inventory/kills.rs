//! The kills: one victim after the other gets SIGKILL while orders are being placed, and is started again.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::sync::watch;

use crate::cli::Victim;
use crate::services::Services;
use synod_examples::cluster::{Cluster, ClusterError};
use synod_examples::process::ProcessError;

/// What the workload and the killer know of each other.
#[derive(Debug)]
pub(crate) struct Turn {
    order_count: usize,
    kill_count: usize,
    decided_count: watch::Sender<usize>,
    killed_count: watch::Sender<usize>,
}

impl Turn {
    /// For so many orders and so many kills.
    pub(crate) fn new(order_count: usize, kill_count: usize) -> Self {
        Self {
            order_count,
            kill_count,
            decided_count: watch::Sender::new(0),
            killed_count: watch::Sender::new(0),
        }
    }

    /// How many orders are decided before the kill at `index`: the kills cut the orders into equal parts.
    fn due(&self, index: usize) -> usize {
        self.order_count - self.order_count * (self.kill_count - index) / (self.kill_count + 1)
    }

    /// The first order that waits for the kill at `index`: half a part later.
    fn gate(&self, index: usize) -> usize {
        let halves = 2 * (self.kill_count - index) - 1;
        self.order_count - self.order_count * halves / (2 * (self.kill_count + 1))
    }

    /// Waits for the turn of the order at `index`. Some orders wait for each kill, so that they always meet the gap that it
    /// leaves, however few orders there are; with many hardly anybody ever waits here.
    pub(crate) async fn of(&self, index: usize) {
        let awaited = (0..self.kill_count)
            .filter(|&kill| self.gate(kill) <= index)
            .count();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self
            .killed_count
            .subscribe()
            .wait_for(|&killed| killed >= awaited)
            .await;
    }

    /// One more order is placed or refused.
    pub(crate) fn decided(&self) {
        self.decided_count.send_modify(|decided| *decided += 1);
    }

    /// Waits until the kill at `index` is due, and something was decided since the last one's end, at which `before` were: the
    /// gaps of two kills shall not be one. Who waits for this kill is not waited for.
    async fn due_after(&self, index: usize, before: usize) {
        let (due, gate) = (self.due(index), self.gate(index));
        let is_due = |&decided: &usize| decided >= due && (decided > before || decided >= gate);
        let _ = self.decided_count.subscribe().wait_for(is_due).await;
    }

    /// Waits for the last decision.
    async fn over(&self) {
        let is_over = |&decided: &usize| decided == self.order_count;
        let _ = self.decided_count.subscribe().wait_for(is_over).await;
    }
}

/// A kill, and what followed.
#[derive(Clone, Debug)]
pub(crate) struct Killed {
    pub(crate) victim: Victim,
    /// The name of the process.
    pub(crate) process: String,
    pub(crate) killed_at: Instant,
    /// How many orders were decided by then.
    pub(crate) after_orders: usize,
    /// From the kill until it listened again.
    pub(crate) away: Duration,
    pub(crate) failover: Option<Failover>,
}

/// What only the leader's death brings about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failover {
    pub(crate) replica: u8,
    pub(crate) new_leader: u8,
}

/// A kill did not go as it should, or somebody died without one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KillError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Kills one victim after the other, and watches the services in between and afterwards until the last order is decided: nobody
/// may die by itself.
pub(crate) async fn run(
    turn: &Turn,
    victims: &[Victim],
    cluster: &mut Cluster,
    services: &mut Services,
    bar: &ProgressBar,
) -> Result<Vec<Killed>, KillError> {
    let mut kills = Vec::new();
    let mut before = 0;
    for (index, &victim) in victims.iter().enumerate() {
        tokio::select! {
            () = turn.due_after(index, before) => {}
            error = services.unexpected_end() => return Err(error.into()),
        }
        kills.push(kill(turn, victim, cluster, services, bar).await?);
        before = *turn.decided_count.borrow();
    }
    tokio::select! {
        () = turn.over() => Ok(kills),
        error = services.unexpected_end() => Err(error.into()),
    }
}

async fn kill(
    turn: &Turn,
    victim: Victim,
    cluster: &mut Cluster,
    services: &mut Services,
    bar: &ProgressBar,
) -> Result<Killed, KillError> {
    let say = |text: String| bar.suspend(|| eprintln!("{text}"));
    // Counted at the kill's instant; the orders that wait for it go on.
    let on_killed = |process: &str, what: &str| {
        let after_orders = *turn.decided_count.borrow();
        turn.killed_count.send_modify(|killed| *killed += 1);
        say(format!(
            "SIGKILL to {process}, {what}, after {after_orders} orders"
        ));
        after_orders
    };
    let (process, killed_at, after_orders, failover);
    match victim {
        Victim::Leader => {
            let (replica, at) = cluster.kill_leader().await?;
            (process, killed_at) = (format!("replica {replica}"), at);
            after_orders = on_killed(&process, "the leader");
            let (new_leader, _) = cluster.await_leader(Some(replica)).await?;
            say(format!("replica {new_leader} leads"));
            cluster.restart(replica).await?;
            failover = Some(Failover { replica, new_leader });
        }
        Victim::Inventory => {
            (process, killed_at) = (services.inventory.name.clone(), Instant::now());
            services.inventory.send_kill()?;
            after_orders = on_killed(&process, "a participant");
            services.restart_inventory().await?;
            failover = None;
        }
        Victim::Relay => {
            (process, killed_at) = (services.orders.name.clone(), Instant::now());
            services.orders.send_kill()?;
            after_orders = on_killed(&process, "in which the relay runs");
            services.restart_orders().await?;
            failover = None;
        }
        Victim::Billing => {
            (process, killed_at) = (services.billing.name.clone(), Instant::now());
            services.billing.send_kill()?;
            after_orders = on_killed(&process, "a consumer of messages");
            services.restart_billing().await?;
            failover = None;
        }
    }
    let away = killed_at.elapsed();
    say(format!("{process} is started again"));
    Ok(Killed {
        victim,
        process,
        killed_at,
        after_orders,
        away,
        failover,
    })
}

#[cfg(test)]
mod tests {
    use super::Turn;
    use std::time::Duration;

    async fn is_waiting(wait: impl Future<Output = ()>) -> bool {
        tokio::time::timeout(Duration::ZERO, wait).await.is_err()
    }

    /// Few orders: at least one is left for the time after the kill, and half of them never wait for it.
    #[tokio::test]
    async fn the_last_quarter_waits_for_the_only_kill() {
        for (order_count, free_count) in [(1, 1), (4, 3), (7, 6), (8, 6), (400, 300)] {
            let turn = Turn::new(order_count, 1);
            for index in 0..order_count {
                assert_eq!(
                    is_waiting(turn.of(index)).await,
                    index >= free_count,
                    "order {index} of {order_count}"
                );
            }
            turn.killed_count.send_replace(1);
            assert!(!is_waiting(turn.of(order_count - 1)).await);
        }
        assert!(!is_waiting(Turn::new(4, 0).of(3)).await, "nobody is to be killed");
    }

    /// Whatever waits for a kill is never what the kill waits for.
    #[tokio::test]
    async fn kills_and_orders_never_wait_for_each_other() {
        for kill_count in 1..=5 {
            for order_count in 1..=50 {
                let turn = Turn::new(order_count, kill_count);
                for kill in 0..kill_count {
                    // Everybody who may go on before this kill is decided; the last one ended just now.
                    let decided = (0..order_count).filter(|&index| turn.gate(kill) > index).count();
                    turn.decided_count.send_replace(decided);
                    assert!(
                        !is_waiting(turn.due_after(kill, decided)).await,
                        "kill {kill} of {kill_count}, {order_count} orders"
                    );
                }
            }
        }
    }

    /// Two kills are apart: the second one waits for a decision after the first one's end.
    #[tokio::test]
    async fn a_kill_waits_for_a_decision_after_the_last_one() {
        let turn = Turn::new(400, 3);
        turn.decided_count.send_replace(220);
        assert!(is_waiting(turn.due_after(1, 220)).await);
        turn.decided();
        assert!(!is_waiting(turn.due_after(1, 220)).await);
        assert!(
            is_waiting(turn.due_after(2, 220)).await,
            "after three quarters, not before"
        );
    }
}
