use super::*;

fn with(rest: &str) -> String {
    format!("apiVersion: {VERSION}\nkind: {KIND}\n{rest}")
}

fn asked(profile: &Profile, point: Point) -> Vec<(&'static str, i64)> {
    profile.at(point).map(|(plugin, weight)| (plugin.name(), weight)).collect()
}

fn names(profile: &Profile, point: Point) -> String {
    let all: Vec<&str> = profile.at(point).map(|(plugin, _)| plugin.name()).collect();
    all.join(" ")
}

#[test]
fn without_profiles_the_defaults_hold() {
    let read = parse(&with("")).expect("a configuration");
    let [profile] = &read.profiles[..] else { panic!("one profile") };
    assert_eq!(profile.scheduler_name, "default-scheduler");
    assert_eq!(
        asked(profile, Point::Score),
        [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("NodeResourcesBalancedAllocation", 1),
            ("ImageLocality", 1)
        ]
    );
    assert_eq!(names(profile, Point::PostFilter), "DynamicResources DefaultPreemption");
    assert!(profile.preemption.is_some());
}

#[test]
fn plugins_are_chosen_point_by_point() {
    let text = r#"
profiles:
- schedulerName: a
  plugins:
    score:
      enabled: [{name: ImageLocality, weight: 7}, {name: NodeAffinity}]
      disabled: [{name: "*"}]
    postFilter: {disabled: [{name: DefaultPreemption}]}
    filter: {disabled: [{name: NodePorts}]}
- schedulerName: b
  percentageOfNodesToScore: 40
  plugins:
    multiPoint:
      enabled: [{name: NodeResourcesFit, weight: 9}]
      disabled: [{name: TaintToleration}, {name: ImageLocality}]
    score: {enabled: [{name: InterPodAffinity, weight: 4}]}
"#;
    let read = parse(&with(text)).expect("a configuration");
    let [a, b] = &read.profiles[..] else { panic!("two profiles") };
    assert_eq!(asked(a, Point::Score), [("ImageLocality", 7), ("NodeAffinity", 1)]);
    assert!(a.preemption.is_none());
    assert!(!a.asks(Point::Filter, "NodePorts") && a.asks(Point::PreFilter, "NodePorts"));
    assert_eq!(
        asked(b, Point::Score),
        [
            // What the point configures itself goes first.
            ("InterPodAffinity", 4),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 9),
            ("PodTopologySpread", 2),
            ("NodeResourcesBalancedAllocation", 1)
        ]
    );
    assert!(!b.asks(Point::Filter, "TaintToleration"));
    assert_eq!(b.percentage_of_nodes, Some(40));
}

#[test]
fn timeouts_are_ten_minutes_unless_told_otherwise() {
    let text = "profiles: [{schedulerName: s, pluginConfig: [
        {name: DynamicResources, args: {filterTimeout: 5s, bindingTimeout: 1m30s}},
        {name: VolumeBinding, args: {bindTimeoutSeconds: 7}}]}]";
    for (text, volumes, devices) in [("", 600, 600), (text, 7, 90)] {
        let read = parse(&with(text)).expect("a configuration");
        let profile = &read.profiles[0];
        let told = (profile.volume_timeout.as_secs(), profile.device_timeout.as_secs());
        assert_eq!(told, (volumes, devices), "{text}");
    }
}

#[test]
fn a_mistake_is_told_with_its_field() {
    let profile = |rest: &str| format!("profiles:\n- schedulerName: s\n{rest}");
    let args = |plugin: &str, args: &str| {
        profile(&format!("  pluginConfig:\n  - name: {plugin}\n    args: {args}"))
    };
    let cases = [
        ("profile: []".to_owned(), "profile: unknown field `profile`"),
        ("parallelism: 0".into(), "parallelism: Invalid value: 0"),
        ("percentageOfNodesToScore: 101".into(), "percentageOfNodesToScore: Invalid value: 101"),
        ("podMaxBackoffSeconds: 0".into(), "podMaxBackoffSeconds: Invalid value: 0"),
        (
            "profiles: [{schedulerName: a}, {schedulerName: a}]".into(),
            "profiles[1].schedulerName: Duplicate value: \"a\"",
        ),
        ("profiles: [{schedulerName: a}, {}]".into(), "profiles[1].schedulerName: Required value"),
        (
            profile("  plugins: {score: {enabled: [{name: Foo}]}}"),
            "profiles[0].plugins.score.enabled[0].name: Invalid value: \"Foo\"",
        ),
        (
            profile("  plugins: {score: {enabled: [{name: NodePorts}]}}"),
            "profiles[0].plugins.score.enabled[0].name: Invalid value: \"NodePorts\": plugin does not extend score",
        ),
        (
            profile("  plugins: {score: {enabled: [{name: NodeAffinity, weight: x}]}}"),
            "profiles[0].plugins.score.enabled[0].weight: invalid type",
        ),
        (
            profile("  plugins: {bind: {disabled: [{name: '*'}]}}"),
            "profiles[0].plugins.bind: Required value",
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: Best}}"),
            "profiles[0].pluginConfig[0].args.scoringStrategy.type: unknown variant `Best`",
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {resources: [{name: cpu, weight: 101}]}}"),
            "profiles[0].pluginConfig[0].args.scoringStrategy.resources[0].weight: Invalid value: 101",
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: RequestedToCapacityRatio}}"),
            "profiles[0].pluginConfig[0].args.scoringStrategy.requestedToCapacityRatio: Required value: must be specified when",
        ),
        (
            args("InterPodAffinity", "{hardPodAffinityWeight: 101}"),
            "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: 101",
        ),
        (
            args(
                "PodTopologySpread",
                "{defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}]}",
            ),
            "profiles[0].pluginConfig[0].args.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty",
        ),
        (
            args(
                "PodTopologySpread",
                "{defaultingType: List, defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}, {maxSkew: 2, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}]}",
            ),
            "profiles[0].pluginConfig[0].args.defaultConstraints[1]: Duplicate value: \"{z, ScheduleAnyway}\"",
        ),
        (
            args(
                "NodeResourcesFit",
                "{scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 9, score: 1}, {utilization: 9, score: 2}]}}}",
            ),
            "profiles[0].pluginConfig[0].args.scoringStrategy.requestedToCapacityRatio.shape[1].utilization: Invalid value: 9: values must be sorted in increasing order",
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {requestedToCapacityRatio: {shape: []}}}"),
            "profiles[0].pluginConfig[0].args.scoringStrategy.requestedToCapacityRatio: Forbidden: must be nil",
        ),
        (
            args("NodeResourcesBalancedAllocation", "{resources: [{name: cpu}, {name: cpu}]}"),
            "profiles[0].pluginConfig[0].args.resources[1].name: Duplicate value: \"cpu\"",
        ),
        (
            args("NodeResourcesBalancedAllocation", "{resources: [{name: cpu, weight: 2}]}"),
            "profiles[0].pluginConfig[0].args.resources[0].weight: Invalid value: 2: must be 1",
        ),
        (
            args(
                "DefaultPreemption",
                "{minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}",
            ),
            "profiles[0].pluginConfig[0].args.minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute",
        ),
        (
            args("DynamicResources", "{bindingTimeout: 100ms}"),
            "profiles[0].pluginConfig[0].args.bindingTimeout: Invalid value: \"100ms\": must be at least 1 second",
        ),
        (
            args("DynamicResources", "{filterTimeout: -1s}"),
            "profiles[0].pluginConfig[0].args.filterTimeout: Invalid value: \"-1s\": must be zero or positive",
        ),
        (
            args("DefaultPreemption", "{kind: OtherArgs}"),
            "profiles[0].pluginConfig[0].args.kind: Unsupported value: \"OtherArgs\"",
        ),
        (
            "extenders: [{urlPrefix: 'http://x', prioritizeVerb: p}]".into(),
            "extenders[0].weight: Invalid value: 0",
        ),
        ("extenders: [{filterVerb: f}]".into(), "extenders[0].urlPrefix: Required value"),
        (
            "extenders: [{urlPrefix: a, bindVerb: b}, {urlPrefix: c, bindVerb: d}]".into(),
            "extenders: Invalid value: found 2 extenders implementing bind",
        ),
        (
            "extenders: [{urlPrefix: a, httpTimeout: soon}]".into(),
            "extenders[0].httpTimeout: Invalid value: \"soon\"",
        ),
    ];
    for (text, want) in cases {
        let Err(error) = parse(&with(&text)) else { panic!("{text} is right") };
        assert!(error.to_string().starts_with(want), "{text}\n{error}\n{want}");
    }
    let Err(error) = parse("apiVersion: v1\nkind: Pod") else {
        panic!("a pod is no configuration")
    };
    assert!(error.to_string().starts_with("apiVersion: Unsupported value: \"v1\""), "{error}");
}
