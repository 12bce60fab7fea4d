//! Inputs, effects and messages in few words, for the last steps of a failing seed.

use gossip::message::{AwardOrder, Direct, ReceiptGroup, StopOrder};
use gossip::{owner, worker};
use job::ExecutionKey;

/// An input of the owner machine.
pub(crate) fn owner_input(input: &owner::Input) -> String {
    match input {
        owner::Input::Message { from, message } => format!("from {}: {}", from.short(), direct(message)),
        owner::Input::Submitted { token, job } => {
            format!("submitted {} v{} x{} (token {token})", job.id.short(), job.version, job.count)
        }
        other => format!("{other:?}"),
    }
}

/// An effect of the owner machine.
pub(crate) fn owner_effect(effect: &owner::Effect) -> String {
    match effect {
        owner::Effect::Send { to, message } => format!("to {}: {}", to.short(), direct(message)),
        owner::Effect::Announce { class, bytes } => format!("announce on {class:?}, {} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// An input of the worker machine.
pub(crate) fn worker_input(input: &worker::Input) -> String {
    match input {
        worker::Input::Message { from, message } => format!("from {}: {}", from.short(), direct(message)),
        worker::Input::Announced { class, bytes, .. } => {
            format!("announced on {class:?}, {} bytes", bytes.len())
        }
        worker::Input::Phase { execution, phase, .. } => format!("{} is {phase:?}", key(execution)),
        worker::Input::Ended { execution, end } => format!("{} ended: {:?}", key(execution), end.outcome),
        other => format!("{other:?}"),
    }
}

/// An effect of the worker machine.
pub(crate) fn worker_effect(effect: &worker::Effect) -> String {
    match effect {
        worker::Effect::Send { to, message } => format!("to {}: {}", to.short(), direct(message)),
        worker::Effect::Start(start) => format!("start {} within {:?}", key(&start.execution), start.timeout),
        worker::Effect::End { execution, reason } => format!("end {}: {reason}", key(execution)),
        other => format!("{other:?}"),
    }
}

/// An execution's key.
pub(crate) fn key(key: &ExecutionKey) -> String {
    format!("{}v{}/{}#{}", key.job.short(), key.version, key.partition, key.attempt)
}

pub(crate) fn direct(message: &Direct) -> String {
    match message {
        Direct::Award(award) => match award.order.read::<AwardOrder>() {
            Ok(order) => format!(
                "award {} of {} v{} epoch {} {:?} answering {:?}",
                order.id,
                order.job.short(),
                order.version,
                order.epoch,
                order.spans,
                order.answers
            ),
            Err(error) => format!("award: {error}"),
        },
        Direct::Stop(stop) => match stop.order.read::<StopOrder>() {
            Ok(order) => {
                format!("stop {} v{} {:?}: {}", order.job.short(), order.version, order.spans, order.reason)
            }
            Err(error) => format!("stop: {error}"),
        },
        Direct::Receipts(receipts) => {
            let groups: Vec<String> = receipts.groups.iter().map(|group| words_of(&group.read())).collect();
            format!("receipts {}", groups.join("; "))
        }
        Direct::Ask(ask) => format!(
            "ask {} v{} open {}",
            ask.announcement.job.short(),
            ask.announcement.version,
            ask.announcement.open
        ),
        Direct::Bid(bid) => {
            format!("bid {} v{} slots {} start {} ms", bid.job.short(), bid.version, bid.slots, bid.start_ms)
        }
        other => format!("{other:?}"),
    }
}

fn words_of(group: &Result<ReceiptGroup, gossip::message::DecodeError>) -> String {
    match group {
        Ok(group) => {
            let receipts: Vec<String> = group
                .receipts
                .iter()
                .map(|one| format!("{}#{} {:?}", one.partition, one.attempt, one.outcome))
                .collect();
            format!("{} v{} [{}]", group.job.short(), group.version, receipts.join(", "))
        }
        Err(error) => error.to_string(),
    }
}
