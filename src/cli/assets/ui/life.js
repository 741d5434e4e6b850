// A pod's life as a waterfall: from the steps that the daemon timed, or, where it has none (it was started
// anew since, or the node is another), from the times in the pod's status.

// Which part of the way a step belongs to, for its colour.
const PART = {
	submit: "api", authenticate: "api", authorise: "api", admit: "api", store: "api", watch: "api",
	schedule: "schedule", bind: "schedule",
	kubelet: "kubelet", volumes: "kubelet", sandbox: "kubelet",
	image: "image", containers: "run", observe: "report", report: "report",
};
const PARTS = [["api", "API server"], ["schedule", "scheduler"], ["kubelet", "volumes, sandbox"], ["image", "image"], ["run", "containers"], ["report", "observation, report"]];

const traces = new Map(); // uid → {steps} or a promise of it

// The recorded steps of a pod. They are asked for once it is done starting, and not again.
async function traceOf(pod) {
	const { uid, namespace, name } = pod.metadata;
	const known = traces.get(uid);
	if (known) return known;
	const settled = pod.status?.phase !== "Pending" && condition(pod, "Ready")?.status !== undefined;
	const answer = askJson(`/ui/trace/${namespace}/${encodeURIComponent(name)}`).then(
		(trace) => (trace.uid === uid ? trace.steps : []), () => []);
	if (settled) traces.set(uid, answer);
	const steps = await answer;
	if (settled) traces.set(uid, steps);
	return steps;
}

// Steps from what the status tells, in the form of recorded ones. Its times are whole seconds.
function stepsOfStatus(pod) {
	const micros = (time) => new Date(time).getTime() * 1000;
	const created = micros(pod.metadata.creationTimestamp);
	const at = (type) => {
		const found = condition(pod, type);
		return found?.status === "True" ? micros(found.lastTransitionTime) : undefined;
	};
	const steps = [];
	const add = (step, from, to, detail) => {
		if (from !== undefined && to !== undefined && to >= from) steps.push({ step, startUs: from, durationUs: to - from, detail });
	};
	const scheduled = at("PodScheduled");
	add("schedule", created, scheduled, pod.spec.nodeName ? `to node ${pod.spec.nodeName}` : "");
	const started = pod.status?.startTime ? micros(pod.status.startTime) : undefined;
	add("sandbox", scheduled ?? started, at("PodReadyToStartContainers"), "network and volumes");
	const all = [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? [])];
	for (const { name, state = {}, restartCount } of all) {
		const begun = state.running?.startedAt ?? state.terminated?.startedAt;
		if (!begun) continue;
		const detail = restartCount ? `${name}, start ${restartCount + 1}` : name;
		add("containers", micros(begun), state.terminated?.finishedAt ? micros(state.terminated.finishedAt) : micros(begun), detail);
	}
	add("report", at("Initialized") ?? scheduled, at("Ready"), "until Ready");
	return steps.toSorted((a, b) => a.startUs - b.startUs);
}

// The beginning of a life, without what came much later: probes, restarts, the end.
function firstSteps(steps) {
	const kept = [];
	let end = 0;
	for (const step of steps) {
		if (kept.length && step.startUs > end + 5e6) break;
		kept.push(step);
		end = Math.max(end, step.startUs + step.durationUs);
	}
	return kept;
}

// Round distances for an axis of so many microseconds.
function ticks(total) {
	const rough = total / 5;
	const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
	const step = [1, 2, 5, 10].map((by) => by * power).find((by) => by >= rough);
	const found = [];
	for (let at = 0; at <= total; at += step) found.push(at);
	return found;
}

function waterfall(steps) {
	if (!steps.length) return h("p.empty", null, "Nothing is known of its life yet.");
	const first = Math.min(...steps.map((step) => step.startUs));
	const total = Math.max(1, ...steps.map((step) => step.startUs + step.durationUs - first));
	const share = (us) => `${((100 * us) / total).toFixed(3)}%`;
	const axis = h("div.axis", { "aria-hidden": "true" }, ticks(total).map((at) => h("span", { style: { left: share(at) } }, at ? micro(at) : "0")));
	const used = new Set(steps.map((step) => PART[step.step]));
	return h("div.waterfall", null,
		h("div.legend", null, PARTS.filter(([part]) => used.has(part)).map(([part, name]) => [h(`i.part.${part}`), name])),
		h("div.lane.top", { "aria-hidden": "true" }, h("span"), axis, h("span")),
		h("div.lanes", { role: "list" }, steps.map((step) => {
			const told = `${step.step}, after ${micro(step.startUs - first)}, took ${micro(step.durationUs)}`;
			return h("div.lane", { role: "listitem", "aria-label": `${told}. ${step.detail ?? ""}`, title: `${told}\n${step.detail ?? ""}` },
				h("span.step", null, step.step),
				h("div.room", null,
					ticks(total).map((at) => h("i.tick", { style: { left: share(at) } })),
					h(`i.bar.part.${PART[step.step] ?? "report"}`, { style: { left: share(step.startUs - first), width: share(step.durationUs) } })),
				h("span.num", null, micro(step.durationUs)),
				h("span.detail.dim", null, step.detail));
		})));
}

// The same in one line of a table.
function lifeLine(steps) {
	const kept = firstSteps(steps);
	if (!kept.length) return "";
	const first = kept[0].startUs;
	const total = Math.max(1, ...kept.map((step) => step.startUs + step.durationUs - first));
	return h("span.lifeline", { title: `started within ${micro(total)}`, "data-mark": String(total) },
		h("span.track", null, kept.map((step) => h(`i.part.${PART[step.step] ?? "report"}`, { style: {
			left: `${(100 * (step.startUs - first)) / total}%`, width: `${(100 * step.durationUs) / total}%` } }))),
		h("span.num", null, micro(total)));
}
