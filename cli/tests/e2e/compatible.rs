//! What Bacalhau's clients rely on: how they ask, and the shapes of what they get.

use std::io::{Read, Write};

use serde_json::{Value, json};
use testnet::client::Client;

use super::guests;
use super::jobs::{ended, job, submit};
use super::net::{Net, within};

/// What a `GET` answers, which must be JSON.
async fn get(client: &Client, path: &str) -> (u16, Value) {
    let answer = within(path, client.get(path)).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn lists_take_the_queries_that_the_python_sdk_sends() {
    let net = Net::up(1, 0).await;
    let client = net.client(0);
    let module = net.add(0, guests::works(1, 0, 1)).await;
    let mut labelled = job(&module, 12);
    labelled["Labels"] = json!({"team": "x", "stage": "y"});
    let id = submit(&client, &labelled).await;
    ended(&client, &id).await;

    for reverse in ["False", "True", "0", "t", ""] {
        let (status, jobs) =
            get(&client, &format!("/orchestrator/jobs?limit=5&next_token=&reverse={reverse}")).await;
        assert_eq!((status, jobs["Items"].as_array().unwrap().len()), (200, 1), "{reverse}");
        let path = format!(
            "/orchestrator/jobs/{id}/executions?namespace=default&order_by=created_at&reverse={reverse}"
        );
        let (status, executions) = get(&client, &path).await;
        assert_eq!((status, executions["Items"].as_array().unwrap().len()), (200, 12), "{reverse}");
    }
    let (_, whole) = get(&client, &format!("/orchestrator/jobs/{id}?include=executions&limit=10")).await;
    assert_eq!(whole["Executions"]["Items"].as_array().unwrap().len(), 12, "limit means nothing here");
    for (labels, found) in [("labels=team%3Dx&labels=stage%3Dy", 1), ("labels=team%3Dx&labels=stage%3Dz", 0)]
    {
        let (status, jobs) = get(&client, &format!("/orchestrator/jobs?{labels}")).await;
        assert_eq!((status, jobs["Items"].as_array().unwrap().len()), (200, found), "{labels}");
    }
    let (_, live) = get(&client, "/orchestrator/jobs?live=true").await;
    assert_eq!(live["Items"], json!([]));
    let (_, history) =
        get(&client, &format!("/orchestrator/jobs/{id}/history?event_type=execution&limit=1000")).await;
    let running =
        history["Items"].as_array().unwrap().iter().find(|item| item["Event"]["Message"] == "Running");
    let details = &running.unwrap()["Event"]["Details"];
    assert_eq!(details["NodeID"], net.node(0).peer.as_str());
    assert!(
        details["PartitionIndex"].as_str().is_some_and(|index| index.parse::<u32>().is_ok()),
        "{details}"
    );
    let (_, none) = get(&client, &format!("/orchestrator/jobs/{id}/history?since=4000000000")).await;
    assert_eq!(none["Items"], json!([]));
}

/// All items of a list, so many at a time.
async fn paged(client: &Client, path: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let (status, page) = get(client, &format!("{path}&limit={limit}&next_token={token}")).await;
        let items = page["Items"].as_array().unwrap();
        assert!(status == 200 && items.len() <= limit, "{page}");
        all.extend(items.iter().cloned());
        token = page["NextToken"].as_str().unwrap().to_owned();
        if token.is_empty() {
            return all;
        }
    }
}

#[tokio::test]
async fn pages_together_are_the_whole_and_a_watch_of_many_partitions_is_short() {
    let net = Net::up(1, 0).await;
    let client = net.client(0);
    let module = net.add(0, guests::works(1, 0, 1)).await;
    let (few, many) = (submit(&client, &job(&module, 2)).await, submit(&client, &job(&module, 12)).await);
    for id in [&few, &many] {
        ended(&client, id).await;
    }
    for (list, items) in [
        ("executions?", 12),
        ("executions?reverse=true", 12),
        ("executions?all_job_versions=true", 12),
        ("history?event_type=execution", 36),
        ("history?all_job_versions=true&event_type=execution", 36),
        ("results?", 12),
    ] {
        let path = format!("/orchestrator/jobs/{many}/{list}");
        let whole = paged(&client, &path, 1000).await;
        assert_eq!(whole.len(), items, "{list}");
        for limit in [1, 5, 12, 36] {
            assert_eq!(paged(&client, &path, limit).await, whole, "{list}, {limit} at a time");
        }
    }
    for (id, executions) in [(&few, 6), (&many, 0)] {
        let mut events = within("a watch", client.events(&format!("/orchestrator/jobs/{id}/watch"))).await;
        let (mut of_executions, mut last, mut is_ended) = (0, 0, false);
        while let Some(event) = within("an event", events.next()).await {
            assert!(!is_ended, "{event:?} after the end");
            is_ended = event.name == "end";
            if event.name == "history" {
                let number = event.data["SeqNum"].as_u64().unwrap();
                assert!(number > last, "{number} after {last}");
                last = number;
                of_executions += usize::from(event.data["Type"] == "ExecutionLevel");
            }
        }
        assert_eq!((of_executions, is_ended), (executions, true));
    }
}

#[tokio::test]
async fn every_error_has_the_same_shape() {
    let net = Net::up(1, 0).await;
    let client = net.client(0);
    for (path, status) in [
        ("/orchestrator/jobs?limit=abc", 400),
        ("/orchestrator/jobs?reverse=maybe", 400),
        ("/orchestrator/jobs?labels=%5B", 400),
        ("/orchestrator/nodes?order_by=colour", 400),
        ("/orchestrator/jobs/j-00000000", 404),
        ("/nothing", 404),
        ("/content/nonsense", 400),
    ] {
        let (is, error) = get(&client, path).await;
        assert_eq!((is, error["Status"].as_u64()), (status, Some(u64::from(status))), "{path}: {error}");
        assert!(error["Message"].as_str().is_some_and(|message| !message.is_empty()), "{path}: {error}");
    }
    let wrong = within("a wrong method", client.delete("/agent/alive", &json!({}))).await;
    assert_eq!((wrong.status, wrong.json()["Code"].as_str()), (405, Some("MethodNotAllowed")));
    let form = within("a form", client.put_bytes("/orchestrator/jobs", "text/plain", "{}".into())).await;
    assert_eq!((form.status, form.json()["Status"].as_u64()), (415, Some(415)));
}

#[tokio::test]
async fn a_client_may_log_in_and_is_told_what_this_is() {
    let net = Net::up(2, 1).await;
    let client = net.client(0);
    let (_, methods) = get(&client, "/auth").await;
    assert_eq!(methods["Methods"]["ClientKey"]["type"], "challenge");
    let answer = within(
        "login",
        client.request(
            hyper::Method::POST,
            "/auth/ClientKey",
            Some("application/json"),
            r#"{"Name": "ClientKey", "MethodData": "e30="}"#.into(),
        ),
    )
    .await;
    assert_eq!(answer.json()["Authentication"]["success"], true, "{}", answer.text());
    assert_eq!(get(&client, "/agent/authconfig").await.1, json!({"Version": "1.0.0", "Config": {}}));
    let (_, version) = get(&client, "/agent/version").await;
    assert_eq!((&version["Product"], &version["Embedded"]), (&json!("cardume"), &json!(false)));
    assert_eq!(version["BuildDate"], "1970-01-01T00:00:00Z");
    let (_, nodes) = get(&client, "/orchestrator/nodes?order_by=type&labels=name%3Dn1").await;
    assert_eq!(nodes["Nodes"].as_array().unwrap().len(), 1, "{nodes}");
    assert_eq!(nodes["Nodes"][0]["Info"]["Labels"]["name"], "n1");
    assert_eq!(get(&client, "/agent/debug").await.1["DiscoveredNodes"].as_array().unwrap().len(), 2);
    let api = net.node(0).api.clone();
    let moved = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(api.trim_start_matches("http://")).unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let moved = moved.await.unwrap().to_lowercase();
    assert!(moved.starts_with("http/1.1 301") && moved.contains("location: /api/v1/agent/alive"), "{moved}");
}

#[tokio::test]
async fn a_job_of_another_namespace_is_found_by_its_name() {
    let net = Net::up(1, 0).await;
    let client = net.client(0);
    let module = net.add(0, guests::works(1, 0, 1)).await;
    let mut elsewhere = job(&module, 1);
    elsewhere["Name"] = "shared".into();
    elsewhere["Namespace"] = "lab".into();
    let id = submit(&client, &elsewhere).await;
    ended(&client, &id).await;
    let described =
        net.shell(0).json(&["job", "describe", "shared", "--namespace", "lab", "--output", "json"]).await;
    assert_eq!(described["Job"]["ID"], id.as_str());
    assert_eq!(described["AccessToken"].as_str().map(str::len), Some(64), "its owner's user may hand it out");
    net.shell(0).refused(&["job", "describe", "shared", "--namespace", "other"], b"").await;
}
