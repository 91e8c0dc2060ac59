//! MUST 13 (T11): identity and binding.

use super::super::trial::{Checked, LINEAGE, Trial, broken, expect_equal, shown};
use super::super::{Harness, Rule};
use crate::resource::{Identity, ResourceError, ResourceManager};
use crate::{Lineage, ResourceId};

const RULE: Rule = Rule::Must(13);
const FOREIGN: Lineage = Lineage([8; 16]);

async fn identity<H: Harness>(trial: &Trial<'_, H>, step: &str) -> Result<Identity, super::Stop> {
    let identity = trial.store().identity(None).await;
    identity.map_err(|error| broken(RULE, step, "an identity", shown(&error)))
}

pub(super) async fn is_kept<H: Harness>(harness: &H) -> Checked {
    let mut one = Trial::unbound(harness, "identity_is_kept").await?;
    let other = Trial::unbound(harness, "identity_is_kept").await?;
    let first = identity(&one, "a new database").await?.resource;
    if first == ResourceId([0; 16]) {
        return Err(broken(RULE, "a new database", "a random id", "zero"));
    }
    if first == identity(&other, "another database").await?.resource {
        return Err(broken(
            RULE,
            "two databases",
            "two ids",
            format!("{first:?} twice"),
        ));
    }
    for step in ["asked again", "after a crash", "after another crash"] {
        expect_equal(RULE, step, &first, &identity(&one, step).await?.resource)?;
        one.crash(()).await?;
    }
    Ok(())
}

pub(super) async fn one_lineage_for_ever<H: Harness>(harness: &H) -> Checked {
    let mut trial = Trial::unbound(harness, "one_lineage_for_ever").await?;
    let unbound = identity(&trial, "a new database").await?;
    expect_equal(RULE, "a new database: lineage", &None, &unbound.lineage)?;
    let step = "begin in a database that is bound to nobody, who could finish it?";
    if trial.store().begin(&trial.context(1)).await.is_ok() {
        return Err(broken(Rule::Must(2), step, "an error", "a local transaction"));
    }
    let bound = trial.store().identity(Some(LINEAGE)).await;
    let bound = bound.map_err(|error| broken(RULE, "bind", "it is bound", shown(&error)))?;
    let expected = Identity {
        lineage: Some(LINEAGE),
        ..unbound
    };
    expect_equal(RULE, "bind", &expected, &bound)?;
    trial.crash(()).await?;
    let step = "after the binding and a crash";
    expect_equal(RULE, step, &expected, &identity(&trial, step).await?)?;
    let step = "bind to another coordinator";
    match trial.store().identity(Some(FOREIGN)).await {
        Err(ResourceError::ForeignLineage { .. }) => {}
        Err(error) => return Err(broken(RULE, step, "ForeignLineage", shown(&error))),
        Ok(identity) => return Err(broken(RULE, step, "ForeignLineage", format!("{identity:?}"))),
    }
    let again = trial.store().identity(Some(LINEAGE)).await;
    let again =
        again.map_err(|error| broken(RULE, "bind to the same again", "it is bound", shown(&error)))?;
    expect_equal(RULE, "after a refused binding", &expected, &again)
}
