//! Interfaces, addresses, routes, rules and neighbours of the network namespace, a line each, as the kernel has them.

use std::{
    fmt::{Debug, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::{TryStream, TryStreamExt as _};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};
use tokio::time::timeout;

/// How long the kernel may take for all of one kind.
const PATIENCE: Duration = Duration::from_secs(10);

/// More lines of one kind are not written: a router may have a million routes.
const MOST_LINES: usize = 20_000;

/// Each kind with what there is, or why that is not known by `deadline`.
pub(super) fn all(deadline: Instant) -> Vec<(&'static str, anyhow::Result<Vec<u8>>)> {
    const KINDS: [&str; 5] = ["interfaces", "addresses", "routes", "rules", "neighbours"];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("start a runtime").and_then(|runtime| {
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
            tokio::spawn(connection);
            Ok([
                within(deadline, lines(handle.link().get().execute())).await,
                within(deadline, lines(handle.address().get().execute())).await,
                within(deadline, routes(&handle)).await,
                within(deadline, rules(&handle)).await,
                within(deadline, lines(handle.neighbours().get().execute())).await,
            ])
        })
    });
    match outcome {
        Ok(found) => KINDS.into_iter().zip(found).collect(),
        Err(error) => {
            let text = format!("{error:#}");
            KINDS.map(|kind| (kind, Err(anyhow::anyhow!("{text}")))).into()
        }
    }
}

async fn routes(handle: &Handle) -> anyhow::Result<Vec<u8>> {
    let v4 = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let v6 = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    Ok([lines(v4).await?, lines(v6).await?].concat())
}

async fn rules(handle: &Handle) -> anyhow::Result<Vec<u8>> {
    let v4 = handle.rule().get(IpVersion::V4).execute();
    let v6 = handle.rule().get(IpVersion::V6).execute();
    Ok([lines(v4).await?, lines(v6).await?].concat())
}

async fn within(deadline: Instant, lines: impl Future<Output = anyhow::Result<Vec<u8>>>) -> anyhow::Result<Vec<u8>> {
    let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
    timeout(patience, lines).await.with_context(|| format!("the kernel did not list all within {patience:?}"))?
}

/// A line for each, and how many there are beyond those that are written. The list is read to its end: the kernel begins no other on the
/// socket before.
async fn lines<T: Debug>(list: impl TryStream<Ok = T, Error = Error>) -> anyhow::Result<Vec<u8>> {
    let mut list = pin!(list.into_stream());
    let (mut text, mut count) = (String::new(), 0usize);
    while let Some(message) = list.try_next().await.context("list by netlink")? {
        count += 1;
        if count <= MOST_LINES {
            let _ = writeln!(text, "{message:?}");
        }
    }
    if count > MOST_LINES {
        let _ = writeln!(text, "... and {} more", count - MOST_LINES);
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn what_is_beyond_the_limit_is_counted() {
        let text = async |count: usize| {
            let list = stream::iter((0..count).map(Ok));
            String::from_utf8(lines(list).await.expect("a list")).expect("text")
        };
        assert_eq!(text(2).await, "0\n1\n");
        let (exact, long) = (text(MOST_LINES).await, text(MOST_LINES + 5).await);
        assert_eq!(exact.lines().count(), MOST_LINES);
        assert_eq!(long.strip_prefix(&*exact), Some("... and 5 more\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_without_an_end_is_given_up() {
        let endless = lines(stream::pending::<Result<u32, Error>>());
        let error = within(Instant::now() + Duration::from_secs(3600), endless).await.expect_err("it has no end");
        assert_eq!(error.to_string(), "the kernel did not list all within 10s");
    }
}
