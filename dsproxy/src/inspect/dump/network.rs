//! Interfaces, addresses, routes, rules and neighbours of the network namespace, a line each, as the kernel has them.

use std::{
    fmt::{Debug, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::Context as _;
use futures::{TryStream, TryStreamExt as _};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};

/// More lines of one kind are not written: a router may have a million routes.
const MOST_LINES: usize = 20_000;

/// Each kind with what there is, or why that is not known.
pub(super) fn all() -> Vec<(&'static str, anyhow::Result<Vec<u8>>)> {
    const KINDS: [&str; 5] = ["interfaces", "addresses", "routes", "rules", "neighbours"];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("start a runtime").and_then(|runtime| {
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
            tokio::spawn(connection);
            Ok([
                lines(handle.link().get().execute()).await,
                lines(handle.address().get().execute()).await,
                routes(&handle).await,
                rules(&handle).await,
                lines(handle.neighbours().get().execute()).await,
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

async fn lines<T: Debug>(stream: impl TryStream<Ok = T, Error = Error>) -> anyhow::Result<Vec<u8>> {
    let all: Vec<T> = stream.try_collect().await.context("list by netlink")?;
    let mut text = String::new();
    for message in all.iter().take(MOST_LINES) {
        let _ = writeln!(text, "{message:?}");
    }
    if all.len() > MOST_LINES {
        let _ = writeln!(text, "... and {} more", all.len() - MOST_LINES);
    }
    Ok(text.into_bytes())
}
