//! What priority and fairness is doing, as text for people: `/debug/api_priority_and_fairness/…`.
//!
//! Source: `k8s.io/apiserver/pkg/util/flowcontrol/apf_controller_debug.go`.

use std::time::SystemTime;

use jiff::Timestamp;

use super::Flow;
use super::classify::Schema;

/// Rows as upstream's tab writer sets them: cells of a column have one width, of eight at least.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 2).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| width(column).max(8)).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == columns {
                text.push_str(cell);
            } else {
                let cell = format!("{cell},");
                text.push_str(&format!("{cell:<0$}", widths[column]));
            }
        }
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn moment(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| time.to_string())
}

impl Flow {
    /// The dump of this name; `None` when there is none.
    pub fn dump(&self, name: &str) -> Option<String> {
        Some(table(&match name {
            "dump_priority_levels" => self.dump_levels(),
            "dump_queues" => self.dump_queues(),
            "dump_requests" => self.dump_requests(),
            _ => return None,
        }))
    }

    fn dump_levels(&self) -> Vec<Vec<String>> {
        let schemas = self.schemas();
        let mut rows = vec![row([
            "PriorityLevelName",
            "ActiveQueues",
            "IsIdle",
            "IsQuiescing",
            "WaitingRequests",
            "ExecutingRequests",
            "DispatchedRequests",
            "RejectedRequests",
            "TimedoutRequests",
            "CancelledRequests",
        ])];
        for level in self.levels.state() {
            let own: Vec<&Schema> = schemas.of_level(&level.name).collect();
            let sum =
                |count: fn(&Schema) -> u64| own.iter().map(|schema| count(schema)).sum::<u64>();
            let waiting: usize = level.queues.iter().map(|queue| queue.waiting.len()).sum();
            let executing = sum(|schema| schema.tally.executing.get().max(0).cast_unsigned());
            let is_active = |running: u64, waiting: usize| running > 0 || waiting > 0;
            let active = level.queues.iter().filter(|q| is_active(q.running, q.waiting.len()));
            rows.push(vec![
                level.name.clone(),
                active.count().to_string(),
                (!is_active(executing, waiting)).to_string(),
                "false".into(),
                waiting.to_string(),
                executing.to_string(),
                sum(|schema| schema.tally.dispatched.get()).to_string(),
                sum(|schema| schema.tally.refused().0).to_string(),
                sum(|schema| schema.tally.refused().1).to_string(),
                sum(|schema| schema.tally.cancelled.get()).to_string(),
            ]);
        }
        rows
    }

    fn dump_queues(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row([
            "PriorityLevelName",
            "Index",
            "PendingRequests",
            "ExecutingRequests",
            "SeatsInUse",
            "NextDispatchR",
            "InitialSeatsSum",
            "MaxSeatsSum",
            "TotalWorkSum",
        ])];
        for level in self.levels.state() {
            for (index, queue) in level.queues.iter().enumerate() {
                let (waiting, running) =
                    (queue.waiting.len().to_string(), queue.running.to_string());
                rows.push(vec![
                    level.name.clone(),
                    index.to_string(),
                    waiting.clone(),
                    running.clone(),
                    running,
                    format!("{:.8}ss", queue.work),
                    waiting.clone(),
                    waiting,
                    format!("{:.8}ss", queue.work),
                ]);
            }
        }
        rows
    }

    /// Those that wait; who runs has no name here.
    fn dump_requests(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row([
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            // Upstream's spelling.
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
            "StartTime",
        ])];
        for level in self.levels.state() {
            for (index, queue) in level.queues.iter().enumerate() {
                for (place, (flow, since)) in queue.waiting.iter().enumerate() {
                    let (schema, whose) = flow.split_once('/').unwrap_or((flow.as_str(), ""));
                    rows.push(vec![
                        level.name.clone(),
                        schema.to_owned(),
                        index.to_string(),
                        place.to_string(),
                        whose.to_owned(),
                        moment(*since),
                        "1".into(),
                        "0".into(),
                        "0s".into(),
                        "0001-01-01T00:00:00Z".into(),
                    ]);
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [row(["Name", "Index", "Last"]), row(["leader-election", "1", "0"])];
        assert_eq!(table(&rows), "Name,            Index,  Last\nleader-election, 1,      0\n");
    }
}
