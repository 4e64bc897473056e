using System.CommandLine;
using Gpu.Attention;
using Gpu.Attention.Samples.Streaming;

const int QuickTokens = 4_096;
var tokens = new Option<int?>("--tokens") { Description = $"Tokens of the stream; {new StreamOptions().Tokens} when left out" };
var device = new Option<string>("--device")
{
    Description = "Where to run: cpu, cuda, opencl, or auto for the best of them",
    DefaultValueFactory = _ => new StreamOptions().Device,
};
var output = new Option<string>("--output") { Description = "The folder of the pictures", DefaultValueFactory = _ => new StreamOptions().Output };
var quick = new Option<bool>("--quick") { Description = $"{QuickTokens} tokens: to see that it runs" };
tokens.Validators.Add(result =>
{
    if (result.GetValue(tokens) is < StreamOptions.FewestTokens or > StreamOptions.MostTokens)
    {
        result.AddError($"--tokens takes a whole number from {StreamOptions.FewestTokens} to {StreamOptions.MostTokens}.");
    }
});

var command = new RootCommand("Decodes a long stream token by token, with linear attention and beside it exact attention over a cache.")
{
    tokens, device, output, quick,
};
command.SetAction(arguments =>
{
    var options = new StreamOptions
    {
        Tokens = arguments.GetValue(tokens) ?? (arguments.GetValue(quick) ? QuickTokens : new StreamOptions().Tokens),
        Device = arguments.GetValue(device)!,
        Output = arguments.GetValue(output)!,
    };
    try
    {
        return new StreamRun(options, Console.Out).Run().IsRight ? 0 : 1;
    }
    catch (Exception e) when (e is ArgumentException or NotSupportedException or DeviceException)
    {
        Console.Error.WriteLine(e.Message);
        return 1;
    }
});
return command.Parse(args).Invoke();
