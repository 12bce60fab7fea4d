//! `kill -9` of the node that a job was submitted to, at every stage of the job.

use std::collections::BTreeMap;

use serde_json::Value;

use super::guests;
use super::jobs::{check_kept, check_worked, completed, ended, job, submit, until};
use super::net::{Net, within};

const COUNT: u32 = 6;

/// When the node is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Answered,
    FirstRuns,
    FirstDone,
    MostDone,
    Ended,
}

#[tokio::test]
async fn a_job_survives_its_owner_at_every_moment() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::works(100, 1_500, COUNT - 2)).await;
    let owner = net.client(0);
    for moment in [Moment::Answered, Moment::FirstRuns, Moment::FirstDone, Moment::MostDone, Moment::Ended] {
        let id = submit(&owner, &job(&module, COUNT)).await;
        match moment {
            Moment::Answered => None,
            Moment::FirstRuns => Some(until(&owner, &id, |now| now.running > 0).await),
            Moment::FirstDone => Some(until(&owner, &id, |now| now.completed > 0).await),
            Moment::MostDone => Some(until(&owner, &id, |now| now.completed >= u64::from(COUNT - 2)).await),
            Moment::Ended => Some(until(&owner, &id, |now| now.completed == u64::from(COUNT)).await),
        };
        let before: BTreeMap<u64, Value> = match moment {
            Moment::Answered => BTreeMap::new(),
            _ => completed(&within("describe", owner.describe(&id)).await),
        };
        net.kill(0).await;
        net.restart(0).await;

        let known = within("describe", owner.describe(&id)).await;
        assert_eq!(known["Job"]["ID"], id.as_str(), "{moment:?}");
        let after = ended(&owner, &id).await;
        check_worked(&after, COUNT.into());
        check_kept(&before, &after);
        // Any peer finds it again, by its old id.
        let elsewhere = within("describe", net.client(1).describe(&id)).await;
        assert_eq!(super::jobs::state(&elsewhere), "Completed", "{moment:?}");
    }
    net.down().await;
}
